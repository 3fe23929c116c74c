"""From rows to token ids: sources, chat templates, prompts, conversations, pairs and batches. No torch."""
