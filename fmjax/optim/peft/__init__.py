"""Parameter-efficient fine-tuning: a frozen base and a small part that is trained."""
