"""The atlas: static pages of the one table of many models.

    effects.parquet ──> reading ──> headlines ──> checkpoints ──> pages, model_page
                                        └───────> comparing ──> figure, comparison_page ──> site

`reading` refuses what is no such table; `headlines` chooses the rows of each measure;
`checkpoints` averages them over seeds and texts; `comparing` pools models by what kind they are;
`site` writes all pages and downloads, whole or not at all. Pages ask for nothing, and whatever a
model is called stays text.
"""
