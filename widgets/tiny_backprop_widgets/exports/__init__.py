"""Files that stand alone: the report and its page; imports `views`, `plots` and `content`."""
