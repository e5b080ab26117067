"""Development code: CRDs and field reference made from the models; the product never imports it."""
