"""The stages on Ray, Arrow and MLflow; they share the contract, storage and tracking only."""
