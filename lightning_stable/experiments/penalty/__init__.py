"""What a shorter window costs on data: the penalty of truncation beside the certified projection and no constraint."""
