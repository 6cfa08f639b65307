"""What several commands share: flags, trees, plans, answers, progress."""
