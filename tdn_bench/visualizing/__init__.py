"""What a network looks at: Grad-CAM, the S-TDM's differences and the L-TDM's gates, as pictures."""
