"""The report of a run: one page, a picture and Markdown, all from the run's JSON files and its gallery."""
