"""Speed, measured side by side in one process and given as ratios: clocks differ between machines, ratios less."""
