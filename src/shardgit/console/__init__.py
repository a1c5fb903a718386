"""The admin port: metrics, health, and a page that shows how the store is."""
