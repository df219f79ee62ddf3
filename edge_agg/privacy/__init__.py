"""The auditor's room: bound, aggregate, add noise, and say what it cost. Pure but for the noise itself."""
