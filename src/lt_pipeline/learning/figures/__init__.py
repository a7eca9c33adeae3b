"""Pictures: one question each. They return matplotlib figures and never touch global state."""
