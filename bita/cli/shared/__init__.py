"""Parts that several commands share: flags, trees, plans, answers, output, progress."""
