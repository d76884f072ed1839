"""The retrieval service over HTTP, for any program that searches (``mode=serve``).

    socket ─► Connection ─► Gate ─────────► app ──dialect──► Desk ─────────────► RetrievalService
              (head: size,   (token, host,   (routes, /mcp)   (limits, 429)       (cache, coalescing)
               time, count)   body)

Each refuses what is its own to refuse, with a status and a reason, before it costs anything further down.
"""
