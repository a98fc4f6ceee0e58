"""The way out: what plr made, in the formats of other tools (`plr.export.formats`), with a model card."""
