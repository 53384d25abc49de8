"""From one image to its views: what each view draws (geometry, photometry) is kept apart from how it is applied."""
