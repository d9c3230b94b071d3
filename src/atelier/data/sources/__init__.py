"""One file a source. Each fills a folder with verified raw files: content decides, not origin."""
