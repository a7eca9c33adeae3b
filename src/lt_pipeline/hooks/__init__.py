"""What Kedro calls: checks, parameters, tracking of where results come from, the console."""
