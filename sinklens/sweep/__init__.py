"""Sweeps: experiments on many models, checkpoints, texts and seeds, and the one table of them.

    spec.toml ──> Spec ──> tasks ──> groups ──> engine ──> work ──> tasks/<name>/
                                                                        └──> table ──> pooled

`spec` reads what is asked for and refuses what is wrong; `tasks` makes a task of every combination;
`groups` puts tasks that share a model together; `engines` run groups in this process, on Ray or on
SLURM; `worker` does a group; `folder` knows what is finished, failed or running; `driver` puts
these together; `table` reads all results into one table.
"""
