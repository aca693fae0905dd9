"""Clients of model servers: captioners, language models and judges behind OpenAI-compatible HTTP."""

from pleinair.endpoints.client import ChatClient
from pleinair.endpoints.endpoint import Endpoint
from pleinair.endpoints.messages import Chat, ChatRequest, EncodedPicture, Message, Reply, Schema
from pleinair.endpoints.spending import Budget, Cost, Spending

__all__ = [
    "Budget",
    "Chat",
    "ChatClient",
    "ChatRequest",
    "Cost",
    "EncodedPicture",
    "Endpoint",
    "Message",
    "Reply",
    "Schema",
    "Spending",
]
