"""The command `fmjax`: its verbs and what each takes."""
