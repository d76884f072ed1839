"""The report of one run: a single HTML file that opens from the disk (``mode=view``, docs/view.md)."""
