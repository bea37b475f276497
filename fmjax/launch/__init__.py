"""Launching: jobs for Slurm, GKE, TPU VMs and several processes of this machine."""
