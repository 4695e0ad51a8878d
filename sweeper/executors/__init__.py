"""Where stages run: in this process, on Ray, on several ranks, or nowhere, for a plan."""
