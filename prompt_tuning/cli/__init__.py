"""The prompt-tuning command."""
