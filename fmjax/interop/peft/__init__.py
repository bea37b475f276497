"""Adapters in the files of the library peft."""
