"""Putting Errata on a Prefect server: deployments for each lineage, who is told, and the automations that tell."""
