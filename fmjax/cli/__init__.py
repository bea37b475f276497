"""The command line: `fmjax VERB ARGUMENTS`."""
