"""The recipes: what each shipped model is, and everything that determines its weights."""

from . import attention, backcopy, norms, positions
from .base import Recipe as Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for family in (positions, norms, attention, backcopy)
    for recipe in family.RECIPES
}
