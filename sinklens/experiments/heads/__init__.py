"""Heads: which do nothing on a text, by what they attend to, read and put out.

Papers: Guo et al. 2024 (2410.13835) find heads that are active on some texts or tokens and dormant
on others, where they attend to the first token; Sandoval-Segura et al. 2025 (2504.03889) compare
scores by which heads can be removed; Ruscio et al. 2023 (2303.08288) relate a word's likelihood to
the attention of its position. The experiments remove heads of a trained model and say what
its predictions lose then. They cannot show that such a head was useless in training, nor that a
model without it would have learned the same.
"""
