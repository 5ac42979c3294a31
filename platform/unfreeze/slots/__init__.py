"""Warm slots: long-lived Ray Train worker groups that run trials one after another, fed through a board."""
