"""Re-rankers that match keypoints with a published network, and need no training of ours."""
