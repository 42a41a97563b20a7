"""What boots a cell: one module a virtual machine monitor, behind one interface."""
