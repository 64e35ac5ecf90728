"""What keeps one client from hurting the others: limits, quotas, rules and overflow."""
