"""Who may buy, with whose money, and how much: keys, customers' accounts, top-ups, limits."""
