"""
Device templates: one TOML file per family of products, one register fixture each in `fixtures`.

What a template may say is in `hem.gateway.template`, who reads it in `hem.gateway.template_device`.
"""
