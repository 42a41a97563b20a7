"""Pages of HTML that need nothing else: an address space to look at (`view_page`), one address explained (`walk_page`).

Both are made from one set of templates in ``templates/``. Data go into a page as JSON and as packed columns (`packed`),
never as rows of markup, so that a page stays small however many regions there are.
"""
