"""Optimizers and schedules by name, told by logical axes what each leaf is."""
