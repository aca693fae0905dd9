"""Pictures behind URLs, fetched politely and without being led anywhere else.

    url --addresses: refused unless public--> consent: robots.txt, ai.txt, tdmrep.json --> turns: one host, few at a time
        --connection: to the checked address, size and time capped--> headers' opt-outs --> bytes that are a picture

Every redirect goes through all of it again. A policy says how; its default reaches public addresses on ports 80 and 443.
"""

from pleinair.curation.web.consent import Consent
from pleinair.curation.web.fetching import WebPicture, fetch_picture
from pleinair.curation.web.policy import FetchPolicy

__all__ = ["Consent", "FetchPolicy", "WebPicture", "fetch_picture"]
