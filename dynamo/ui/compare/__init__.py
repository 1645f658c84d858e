"""The Compare tab: both lanes, the inspector, the chat, and the service that runs them."""
