"""Features that other tools made -> a modality of feature caches."""
