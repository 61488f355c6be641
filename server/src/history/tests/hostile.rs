//! What a client that means harm sends, refused.
