"""Is it good enough, and how do we say so?"""
