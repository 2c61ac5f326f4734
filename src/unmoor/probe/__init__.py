"""Looks from outside: does every address answer, and are DNS answers spread evenly?"""
