"""The ground floor: what is neither text nor cache, such as errors, settings, files, locks and progress."""
