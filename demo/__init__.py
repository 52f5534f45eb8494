"""The main job on real data: two adapters made, served and shown beside the base model."""
