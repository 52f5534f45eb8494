"""Work that outlives a request: fine-tuning jobs, in the database and at a worker."""
