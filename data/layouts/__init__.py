"""The layouts that people have training data in: one small reader each (see `data.layouts.find`)."""
