"""The commands on customers' accounts, keys and wallets."""
