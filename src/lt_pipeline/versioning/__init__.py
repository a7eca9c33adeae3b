"""DVC: dvc.yaml from the pipelines, dvc.lock, and which files code rests on."""
