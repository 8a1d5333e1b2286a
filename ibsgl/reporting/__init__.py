"""The paper's tables and figures, from the scores and curves of a run."""
