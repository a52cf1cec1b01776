"""What a run knows of its machine and survives on it: owners, hosts, signals, damage, and where its time goes."""
